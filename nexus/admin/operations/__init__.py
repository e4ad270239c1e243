"""Operations on the root key: what people ask for, and the driver that brings each to its end."""
