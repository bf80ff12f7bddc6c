"""zennit's hooks as rules: a `BasicHook` is data to be evaluated, any other `Hook` is called."""
