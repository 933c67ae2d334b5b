"""One synthetic voice, spoken in a process of its own.

This file is run as a script, never imported: the GPL library espeak-ng is loaded here and nowhere else, and a
fresh process per voice is what makes its output repeatable (its noise generator and voice state are globals).
Only the standard library is used, so a process starts in a few hundredths of a second.

In, one JSON object on stdin: library, data (paths), voice_file (path), seed, utterances: a list of objects
{text, rate_wpm, pitch, range} (pitch and range 0..99, 50 is the voice as it is).
Out, on stdout, little-endian: the sample rate in Hz as uint32; then per utterance its number of samples as
uint32 and as many int16 samples (mono). Any failure goes to stderr, with exit status 1.
"""

import ctypes
import json
import struct
import sys

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
CHARACTERS_UTF8 = 1
BUFFER_MS = 200
VOLUME_PERCENT = 60  # at 100 one voice in ten clips


def main() -> int:
    """Read one request (JSON) from standard input and write its sound to standard output; the exit status."""
    request = json.load(sys.stdin)
    library = ctypes.CDLL(request["library"])
    rate_hz = library.espeak_Initialize(
        AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, request["data"].encode(), INITIALIZE_DONT_EXIT
    )
    if rate_hz <= 0:
        print(f"espeak-ng could not start with the data folder {request['data']}", file=sys.stderr)
        return 1

    samples = bytearray()

    def collect(wave, count, events):
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(collect)
    library.espeak_SetSynthCallback(callback)
    # Seeding before Initialize has no effect: Initialize seeds by the clock.
    library.espeak_ng_SetRandSeed(ctypes.c_long(request["seed"]))
    status = library.espeak_ng_SetVoiceByFile(request["voice_file"].encode())
    if status != 0:
        print(f"espeak-ng refused the voice file {request['voice_file']} (status {status:#x})", file=sys.stderr)
        return 1

    library.espeak_SetParameter(VOLUME, VOLUME_PERCENT, 0)

    out = sys.stdout.buffer
    out.write(struct.pack("<I", rate_hz))
    for utterance in request["utterances"]:
        samples.clear()
        library.espeak_SetParameter(RATE, utterance["rate_wpm"], 0)
        library.espeak_SetParameter(PITCH, utterance["pitch"], 0)
        library.espeak_SetParameter(RANGE, utterance["range"], 0)
        text = utterance["text"].encode()
        status = library.espeak_Synth(text, len(text) + 1, 0, 0, 0, CHARACTERS_UTF8, None, None)
        if status != 0:
            print(f"espeak-ng could not speak {utterance['text']!r} (status {status})", file=sys.stderr)
            return 1
        out.write(struct.pack("<I", len(samples) // 2))
        out.write(samples)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
