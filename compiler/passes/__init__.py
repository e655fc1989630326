"""Program passes: each a name, a promise and a function from program to program."""
