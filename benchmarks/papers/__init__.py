"""What the papers on choosing rules found, looked for in networks trained on scenes; a section for each paper."""
