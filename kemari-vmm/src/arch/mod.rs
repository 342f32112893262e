//! x86_64: the memory map, CPUID, vCPU and interrupt controller state, ACPI.
