//! What only the ledger in Redis promises.

use super::*;
