//! Non-maximum suppression per class.
