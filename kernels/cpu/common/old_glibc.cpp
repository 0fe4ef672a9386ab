// Lets the library be loaded by any glibc since 2.17, whatever it was compiled with.
//
// Newer headers of the C++ library ask this variable of glibc 2.32 whether reference counts need atomic operations. The
// answer "no, there may be other threads" is always right.

extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
