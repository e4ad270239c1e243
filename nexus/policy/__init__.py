"""Pure rules over names: paths, globs, the policies made of them, and how many versions are kept."""
