//! Preprocessing against plain references.
