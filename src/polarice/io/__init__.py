"""Files at the edge: STAR tables, MRC stacks, tables of particles. Strict writers, patient readers."""
