"""From submit to a running process: warm, cold, many at once; and to the end of the machine."""
