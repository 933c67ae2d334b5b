"""Corpora, audio, the embedded synthetic corpus, mixing with noise and rooms, feature banks."""
