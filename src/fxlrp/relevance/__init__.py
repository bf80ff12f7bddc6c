"""The relevance pass: which rule each op gets, and how the pass is written into the graph."""
