"""The dashboard: `static`, files that the controller serves at `/`, and `relay`, a way to them where the controller has
none for a browser. The page is a client of the HTTP API like any other: nothing here knows the region."""
