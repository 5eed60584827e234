// The differences between Linux, macOS and Windows. The Windows half has never been compiled.
#pragma once
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <dlfcn.h>
#include <unistd.h>
#endif

#include <string>

namespace dgcl {

#if defined(_WIN32)
inline bool in_forked_process() { return false; }

inline void* loaded_function(const std::string& library, const char* name) {
  const HMODULE loaded = GetModuleHandleA((library + ".dll").c_str());
  return loaded ? reinterpret_cast<void*>(GetProcAddress(loaded, name)) : nullptr;
}
#else
inline const pid_t loaded_in = getpid();

// Whether this process was forked after the library was loaded.
inline bool in_forked_process() { return getpid() != loaded_in; }

// A function of a library that is already loaded, or null.
inline void* loaded_function(const std::string& library, const char* name) {
  void* loaded = dlopen(("lib" + library + ".so").c_str(), RTLD_NOW | RTLD_NOLOAD);
  return loaded ? dlsym(loaded, name) : nullptr;
}
#endif

}  // namespace dgcl
