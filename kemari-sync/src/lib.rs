//! kemari-sync
