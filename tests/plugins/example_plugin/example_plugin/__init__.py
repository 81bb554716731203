"""A method, a reward and a policy for sdpo-bench, in a distribution of their own."""
