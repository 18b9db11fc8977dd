"""Archives to look at: pages for a browser, lists for a terminal, contact sheets."""
