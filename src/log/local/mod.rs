//! The log in files of our own.
