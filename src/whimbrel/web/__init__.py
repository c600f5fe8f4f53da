"""The dashboard: static files that the controller serves at `/`. No code of ours runs here but in the browser."""
