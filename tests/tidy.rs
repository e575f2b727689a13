//! Holds the rules of the tree, so that no reviewer has to.
