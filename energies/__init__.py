"""What is sampled: molecules, potentials, coordinates. Knows no flow; imports no OpenMM."""
