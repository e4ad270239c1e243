"""Pure rules over names: paths, globs, and the policies made of them."""
