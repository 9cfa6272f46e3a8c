"""The commands of marco-fast: one file each, with add() for its options and run()."""
