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
