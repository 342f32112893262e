//! kemari-vmm
