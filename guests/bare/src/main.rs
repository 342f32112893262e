//! The program: entry, memory, panics. Everything else is in the library.

#![no_std]
#![no_main]

extern crate alloc;

use core::arch::{global_asm, naked_asm};
use core::fmt::Write;
use core::panic::PanicInfo;

use bare_guest::console::Console;
use bare_guest::{abi, boot, setup, traps, worker};
use embedded_alloc::LlffHeap;

/// Bytes of the heap, behind the image.
const HEAP_BYTES: u64 = 8 << 20;
/// Bytes of the stack.
const STACK_BYTES: usize = 128 << 10;
/// Bytes of the stack of each further vCPU.
const WORKER_STACK_BYTES: usize = 16 << 10;

/// The note that marks this program: lengths of name and descriptor, type, name, padded to four bytes.
#[repr(C)]
struct Note(u32, u32, u32, [u8; 7], u8);

#[used]
#[unsafe(link_section = ".note.kemari")]
static NOTE: Note = Note(abi::NOTE_NAME.len() as u32, 0, abi::NOTE_TYPE, *abi::NOTE_NAME, 0);

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();

#[repr(C, align(4096))]
struct Stack([u8; STACK_BYTES]);

#[unsafe(no_mangle)]
static mut BARE_STACK: Stack = Stack([0; STACK_BYTES]);

#[repr(C, align(4096))]
struct WorkerStacks([[u8; WORKER_STACK_BYTES]; abi::VCPUS_MAX - 1]);

#[unsafe(no_mangle)]
static mut BARE_WORKER_STACKS: WorkerStacks = WorkerStacks([[0; WORKER_STACK_BYTES]; abi::VCPUS_MAX - 1]);

/// One vCPU allocates, in one thread, and interrupt handlers touch nothing but their counters.
struct OneThread;
critical_section::set_impl!(OneThread);
// SAFETY: see above: every section is critical.
unsafe impl critical_section::Impl for OneThread {
    unsafe fn acquire() -> critical_section::RawRestoreState {}
    unsafe fn release(_: critical_section::RawRestoreState) {}
}

/// The entry: a stack, then [`main`] with the boot information's address, which is in `rdi`; on a further
/// vCPU, whose number is in `rsi`, [`worker`] with that.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text._start")]
extern "C" fn _start() -> ! {
    naked_asm!(
        "test esi, esi",
        "jnz 2f",
        "lea rsp, [rip + BARE_STACK + {bytes}]",
        "xor ebp, ebp",
        "call {main}",
        "ud2",
        // Stack n - 1 ends where stack n would begin.
        "2:",
        "mov edi, esi",
        "imul esi, esi, {worker_bytes}",
        "lea rsp, [rip + BARE_WORKER_STACKS]",
        "add rsp, rsi",
        "xor ebp, ebp",
        "call {worker}",
        "ud2",
        bytes = const STACK_BYTES,
        main = sym main,
        worker_bytes = const WORKER_STACK_BYTES,
        worker = sym worker,
    )
}

// What compiled code calls. In assembly, since loops in Rust would be compiled to calls of themselves.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "sub rdi, rsi",
    "cmp rdi, rdx",
    "mov rdi, rax",
    "jb 1f",
    "rep movsb",
    "ret",
    // The destination overlaps the end of the source: backwards.
    "1:",
    "lea rsi, [rsi + rcx - 1]",
    "lea rdi, [rdi + rcx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "xor ecx, ecx",
    "2:",
    "cmp rcx, rdx",
    "je 3f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 2b",
    "3:",
    "ret",
    // Named by the precompiled `alloc`, which can unwind; nothing here does.
    ".globl _Unwind_Resume, rust_eh_personality",
    "_Unwind_Resume:",
    "rust_eh_personality:",
    "ud2",
);

unsafe extern "C" {
    /// The first byte behind the image, page-aligned (link.ld).
    static __image_end: u8;
}

extern "C" fn main(boot_info: u64) -> ! {
    // SAFETY: the machine of abi.rs has entered here, once. The gates come first,
    // for what may go wrong later.
    unsafe { traps::install() };
    // SAFETY: and it has put the boot information at this address.
    let info = unsafe { boot::info(boot_info) };
    let heap = (&raw const __image_end) as u64;
    let free = heap + HEAP_BYTES;
    assert!(
        info.low_memory_bytes > free,
        "{} bytes of memory are too few",
        info.low_memory_bytes
    );
    // SAFETY: nobody uses the memory behind the image, and the heap is initialised once.
    unsafe { HEAP.init(heap as usize, HEAP_BYTES as usize) };
    // SAFETY: neither does anybody use what is behind the heap.
    let guest = unsafe { setup::set_up(info, free..info.low_memory_bytes) };
    guest.run()
}

extern "C" fn worker(vcpu: u64) -> ! {
    // SAFETY: the machine of abi.rs has entered here, once on each further vCPU.
    unsafe { worker::work(vcpu as usize) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "bare guest {info}");
    traps::stop()
}
