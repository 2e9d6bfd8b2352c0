//! One file per API; [`ALL`] is the one table of them.

use super::Api;

/// Every API that this broker serves. ApiVersions, dispatch and the documentation's table come from here.
pub static ALL: &[&Api] = &[];
