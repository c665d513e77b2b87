"""The only file that knows everyone: it builds the parts and wires them."""
