//! The Update Framework 1.0 client and schema, sans-I/O.
