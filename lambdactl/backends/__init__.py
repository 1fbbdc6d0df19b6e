"""Where runs can run besides SSH hosts."""
