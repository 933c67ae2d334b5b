"""Log-mel energies; whole files and streams give the same values."""
