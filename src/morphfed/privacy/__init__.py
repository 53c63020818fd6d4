"""What may leave a site, and the gate through which it leaves."""
