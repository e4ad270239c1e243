"""Operations on the root key as pure rules: no I/O, no threads, no clock, no chance. `nexus.admin` drives them."""
