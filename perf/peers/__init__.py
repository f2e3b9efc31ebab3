"""What the core is compared with: small applications that do the same work otherwise, or none."""
