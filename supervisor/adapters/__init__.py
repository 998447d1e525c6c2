"""Each module touches one outside thing and translates its errors."""
