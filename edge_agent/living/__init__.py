"""Living on a box: systemd and its watchdog, crash loops, metered links, the battery, and what the doctor looks at."""
