"""Tables: a file per subject, each a pure function of the records."""
