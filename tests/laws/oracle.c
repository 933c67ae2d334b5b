/* The integer arithmetic once more, written from docs/arithmetic.md alone and by other means than the package:
 * 128-bit products, floor division and a comparison of the remainder with one half, where the package adds
 * half a unit and shifts. Compiled and called by test_c_oracle.py. Section numbers are those of the page. */
#include <math.h>
#include <stdint.h>

typedef __int128 wide;
enum { SINGLE, DOUBLE, DOUBLE_UP };

static wide floor_div(wide a, wide b) { /* b > 0 */
    wide q = a / b;
    return a % b < 0 ? q - 1 : q;
}

static wide half_up(wide a, wide b) { /* nearest to a / b, ties towards +infinity */
    wide q = floor_div(a, b);
    return 2 * (a - q * b) >= b ? q + 1 : q;
}

static wide half_away(wide a, wide b) { return a >= 0 ? half_up(a, b) : -half_up(-a, b); }

static int64_t clamp(wide v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : (int64_t)v; }

/* Section 2. */
static wide requantize(int64_t acc, int64_t m, int s, int mode) {
    if (mode == SINGLE) return half_up((wide)acc * m, (wide)1 << s);
    wide a = acc;
    if (s < 31) a = clamp(a * ((wide)1 << (31 - s)), INT32_MIN, INT32_MAX);
    wide v = half_up(a * m, (wide)1 << 31);
    wide d = (wide)1 << (s > 31 ? s - 31 : 0);
    return mode == DOUBLE ? half_away(v, d) : half_up(v, d);
}

void requantize_many(int64_t n, const int64_t *acc, const int64_t *m, const int64_t *s, int mode, int64_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (int64_t)requantize(acc[i], m[i], (int)s[i], mode);
}

/* Section 3, unclamped; saturated to int64 in case the true value does not fit. */
void unfolded_many(int64_t n, const int64_t *acc, const int64_t *a, const int64_t *b, const int64_t *m1,
                   const int64_t *m2, const int64_t *s, int64_t *out) {
    for (int64_t i = 0; i < n; i++)
        out[i] = clamp(half_up((wide)acc[i] * a[i] * m1[i] + (wide)b[i] * m2[i], (wide)1 << s[i]), INT64_MIN, INT64_MAX);
}

static int64_t dot(const int8_t *x, const int8_t *c, int64_t k) {
    int64_t sum = 0;
    for (int64_t i = 0; i < k; i++) sum += (int64_t)x[i] * c[i];
    return sum;
}

/* Returns how many accumulators leave int32: the proofs say none. */
int64_t dense(int64_t t, int64_t n, int64_t k, const int8_t *x, const int8_t *codes, const int32_t *bias,
              const int32_t *m, const int32_t *s, int mode, int lo, int8_t *y) {
    int64_t outside = 0;
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < n; j++) {
            int64_t acc = bias[j] + dot(x + i * k, codes + j * k, k);
            outside += acc < INT32_MIN || acc > INT32_MAX;
            y[i * n + j] = (int8_t)clamp(requantize(acc, m[j], s[j], mode), lo, 127);
        }
    return outside;
}

void unfolded_dense(int64_t t, int64_t n, int64_t k, const int8_t *x, const int8_t *codes, const int8_t *a,
                    const int8_t *b, int64_t m1, int64_t m2, int s, int lo, int8_t *y) {
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < n; j++) {
            wide v = (wide)dot(x + i * k, codes + j * k, k) * a[j] * m1 + (wide)b[j] * m2;
            y[i * n + j] = (int8_t)clamp(half_up(v, (wide)1 << s), lo, 127);
        }
}

/* Section 4. */
void output_dense(int64_t t, int64_t n, int64_t k, const int8_t *x, const int8_t *codes, const int32_t *bias,
                  int32_t *acc) {
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < n; j++) acc[i * n + j] = (int32_t)(bias[j] + dot(x + i * k, codes + j * k, k));
}

/* Section 1: normalise and quantize every frame, then window i ends at frame i, zeros before the first. */
void windows(int64_t t, int64_t stacked, int64_t mels, const float *frames, const float *mean, const float *inverse_std,
             float scale, int8_t *out) {
    for (int64_t i = 0; i < t; i++)
        for (int64_t f = 0; f < stacked; f++)
            for (int64_t j = 0; j < mels; j++) {
                int64_t at = i - stacked + 1 + f;
                int8_t q = 0;
                if (at >= 0) {
                    volatile float centred = frames[at * mels + j] - mean[j];
                    volatile float scaled = centred * inverse_std[j];
                    float v = scaled / scale;
                    float below = floorf(v);
                    float r = v - below >= 0.5f ? below + 1 : below;
                    q = (int8_t)(r < -128 ? -128 : r > 127 ? 127 : r);
                }
                out[(i * stacked + f) * mels + j] = q;
            }
}

/* Constants, all in double. */
static double round_up(double v) { double below = floor(v); return v - below >= 0.5 ? below + 1 : below; }

static double code_scale(int64_t n, const double *v) {
    double peak = 0;
    for (int64_t i = 0; i < n; i++) peak = fabs(v[i]) > peak ? fabs(v[i]) : peak;
    return peak > 0 ? peak / 127 : 1;
}

/* Section 2, for channels that are not constant. */
void fold(int64_t n, const double *g, const double *o, const double *s_w, double s_x, double s_y, int64_t *bias,
          int64_t *m, int64_t *s) {
    for (int64_t i = 0; i < n; i++) {
        double unit = s_x * s_w[i] * fabs(g[i]);
        int e;
        double f = frexp(unit / s_y, &e);
        m[i] = (int64_t)floor(ldexp(f, 31) + 0.5);
        if (m[i] == (int64_t)1 << 31) { m[i] = 1 << 30; e++; }
        s[i] = 31 - e;
        bias[i] = (int64_t)round_up(o[i] / unit);
    }
}

/* Section 3: codes into a and b, {m1, m2, S} into layer. s_w is the tensor's one step, or 1 with g scaled by row. */
void unfold(int64_t n, const double *g, const double *o, double s_w, double s_x, double s_y, int64_t *a, int64_t *b,
            int64_t *layer) {
    double s_a = code_scale(n, g), s_b = code_scale(n, o);
    int e;
    double f = frexp(s_x * s_w * s_a / s_y, &e);
    layer[0] = (int64_t)floor(ldexp(f, 15) + 0.5);
    if (layer[0] == 1 << 15) { layer[0] = 1 << 14; e++; }
    layer[2] = 15 - e;
    layer[1] = (int64_t)floor(ldexp(1, (int)layer[2]) * s_b / s_y + 0.5);
    for (int64_t i = 0; i < n; i++) {
        a[i] = clamp((wide)round_up(g[i] / s_a), -127, 127);
        b[i] = clamp((wide)round_up(o[i] / s_b), -127, 127);
    }
}

/* Section 8: curves. 0 is the sigmoid, 1 tanh. */
static int64_t entry(int kind, int64_t i) {
    long double at = (long double)(i - 256) / 32;
    long double v = kind ? tanhl(at) : 1 / (1 + expl(-at));
    int64_t t = (int64_t)floorl(v * 32768 + 0.5L);
    return t < 32767 ? t : 32767;
}

static int64_t tables[2][513];

void make_curves(int64_t *out) {
    for (int kind = 0; kind < 2; kind++)
        for (int64_t i = 0; i < 513; i++) out[kind * 513 + i] = tables[kind][i] = entry(kind, i);
}

static int64_t curve(int kind, int64_t z) {
    int64_t j = (int64_t)floor_div((wide)z + 32768, 128), r = (int64_t)((wide)z + 32768 - (wide)j * 128);
    const int64_t *t = tables[kind];
    return t[j] + (int64_t)half_up((wide)(t[j + 1] - t[j]) * r, 128);
}

void curve_many(int64_t n, int64_t kind, const int64_t *z, int64_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = curve((int)kind, z[i]);
}

/* Section 8: constants of one row, {m_x, m_h, b, S}; rho_x = input_unit 2^12, rho_h = state_unit 2^12. */
void gate_row(double input_unit, double state_unit, double bias, int64_t *out) {
    double rho_x = input_unit * 4096, rho_h = state_unit * 4096;
    int e;
    double f = frexp(rho_x > rho_h ? rho_x : rho_h, &e);
    if (round_up(f * 16777216) == 16777216) e++;
    out[3] = 24 - e;
    double unit = ldexp(1, 24 - e);
    out[0] = (int64_t)round_up(rho_x * unit);
    out[1] = (int64_t)round_up(rho_h * unit);
    out[2] = (int64_t)round_up(bias * 4096 * unit);
}

/* Section 8: z of n rows. */
static int64_t gate(int64_t row, int64_t kx, int64_t kh, const int8_t *x, const int8_t *h, const int8_t *cw,
                    const int8_t *cu, const int64_t *mx, const int64_t *mh, const int64_t *b, const int64_t *s) {
    wide v = (wide)dot(x, cw + row * kx, kx) * mx[row] + (wide)dot(h, cu + row * kh, kh) * mh[row] + b[row];
    return clamp(half_up(v, (wide)1 << s[row]), -32768, 32767);
}

/* Section 8: an LSTM layer over t frames; h, c are the state before, and after; y takes every h. */
void lstm_layer(int64_t t, int64_t kx, int64_t hidden, const int8_t *x, const int8_t *cw, const int8_t *cu,
                const int64_t *mx, const int64_t *mh, const int64_t *b, const int64_t *s, int8_t *h, int16_t *c, int8_t *y) {
    for (int64_t i = 0; i < t; i++) {
        int8_t *out = y + i * hidden;
        for (int64_t n = 0; n < hidden; n++) {
            int64_t z[4];
            for (int64_t q = 0; q < 4; q++) z[q] = gate(q * hidden + n, kx, hidden, x + i * kx, h, cw, cu, mx, mh, b, s);
            wide grown = (wide)16 * curve(0, z[1]) * c[n] + (wide)curve(0, z[0]) * curve(1, z[2]);
            c[n] = (int16_t)clamp(half_up(grown, 1 << 19), -32768, 32767);
            int64_t bent = curve(1, clamp((wide)2 * c[n], -32768, 32767));
            out[n] = (int8_t)clamp(half_up((wide)curve(0, z[3]) * bent, 1 << 23), -128, 127);
        }
        for (int64_t n = 0; n < hidden; n++) h[n] = out[n];
    }
}

/* Section 9: hidden values of the joiner. */
void joint(int64_t n, int64_t ke, int64_t kp, const int8_t *e, const int8_t *p, const int8_t *ce, const int8_t *cp,
           const int64_t *me, const int64_t *mp, const int64_t *b, const int64_t *s, int8_t *y) {
    for (int64_t i = 0; i < n; i++)
        y[i] = (int8_t)clamp(half_up(curve(1, gate(i, ke, kp, e, p, ce, cp, me, mp, b, s)), 256), -128, 127);
}

/* Section 11: a whole recording from silence. sizes: T F C, N k_t k_f, s_t s_f, zeros below and above, depthwise.
 * Returns how many accumulators leave int32: the proofs say none. */
int64_t conv(const int64_t *z, const int16_t *x, const int8_t *codes, const int32_t *bias, const int32_t *m,
             const int32_t *s, int mode, int64_t low, int64_t high, int8_t *y) {
    int64_t T = z[0], F = z[1], C = z[2], N = z[3], kt = z[4], kf = z[5], st = z[6], sf = z[7];
    int64_t below = z[8], above = z[9], depthwise = z[10], outside = 0;
    int64_t inputs = depthwise ? 1 : C;
    for (int64_t j = 0; j < T / st; j++)
        for (int64_t g = 0; g * sf + kf <= F + below + above; g++)
            for (int64_t n = 0; n < N; n++) {
                wide acc = bias[n];
                for (int64_t a = 0; a < kt; a++)
                    for (int64_t e = 0; e < kf; e++)
                        for (int64_t i = 0; i < inputs; i++) {
                            int64_t t = (j + 1) * st - kt + a, f = g * sf - below + e;
                            if (t < 0 || f < 0 || f >= F) continue;
                            acc += (wide)codes[((n * kt + a) * kf + e) * inputs + i] * x[(t * F + f) * C + (depthwise ? n : i)];
                        }
                outside += acc < INT32_MIN || acc > INT32_MAX;
                *y++ = (int8_t)clamp(requantize((int64_t)acc, m[n], s[n], mode), low, high);
            }
    return outside;
}

/* Section 12: {m, m', s} into out; then the sum of n codes. */
void add_constants(double s_x, double s_source, double s_y, int64_t *out) {
    double r = s_x / s_y, q = s_source / s_y;
    int e;
    frexp(r > q ? r : q, &e);
    out[2] = 20 - e < 31 ? 20 - e : 31;
    out[0] = (int64_t)round_up(ldexp(r, (int)out[2]));
    out[1] = (int64_t)round_up(ldexp(q, (int)out[2]));
}

void add(int64_t n, const int8_t *x, const int8_t *source, int64_t m, int64_t m_source, int64_t s, int64_t low,
         int64_t high, int8_t *y) {
    for (int64_t i = 0; i < n; i++)
        y[i] = (int8_t)clamp(half_up((wide)x[i] * m + (wide)source[i] * m_source, (wide)1 << s), low, high);
}

/* Section 13: {m, s} into out; then the mean after each of T frames [F, C]. */
void pool_constants(double s_x, double s_y, int64_t frames, int64_t frequencies, int64_t *out) {
    int e;
    double f = frexp(s_x / (s_y * (double)(frames * frequencies)), &e);
    out[0] = (int64_t)round_up(ldexp(f, 31));
    if (out[0] == (int64_t)1 << 31) { out[0] = 1 << 30; e++; }
    out[1] = 31 - e;
}

void pool(int64_t T, int64_t F, int64_t C, int64_t frames, const int8_t *x, int64_t m, int64_t s, int mode, int64_t low,
          int64_t high, int8_t *y) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) {
            int64_t acc = 0;
            for (int64_t u = t - frames + 1; u <= t; u++)
                for (int64_t f = 0; u >= 0 && f < F; f++) acc += x[(u * F + f) * C + c];
            y[t * C + c] = (int8_t)clamp(requantize(acc, m, (int)s, mode), low, high);
        }
}
