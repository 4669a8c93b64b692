"""Intel AMT: WS-Man functions and the redirection protocol."""
