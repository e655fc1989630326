"""Schedule passes: each a name, a promise and a function from the plan of a workload to a better one."""
