"""The work behind each verb of the command line: one module a verb, and what they share."""
