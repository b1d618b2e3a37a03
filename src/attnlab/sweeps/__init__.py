"""Many runs: jobs, where they run, what they need, whether their arms are comparable."""
