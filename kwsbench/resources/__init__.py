"""Memory and cost of an integer program; each number says whether it is measured, modelled or projected."""
