// Reads the arguments of one call from two Python dicts, and trusts none of them: every number has a range, every array
// a dtype, a layout and a number of values. What is wrong is a TypeError or a ValueError that names it.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "storage.h"

namespace ncakern {

namespace py = pybind11;

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max(), kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int kMaxThreads = 1024;

inline std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

// A product of sizes, as the number of values of an array.
inline int64_t count(std::initializer_list<int64_t> sizes, const char* name) {
  int64_t product = 1;
  for (int64_t size : sizes)
    if (__builtin_mul_overflow(product, size, &product) || product >= int64_t{1} << 56)
      throw py::value_error(std::string(name) + " would have 2**56 values or more");
  return product;
}

class Options {
 public:
  explicit Options(const py::dict& values) : values_(values) {}

  int64_t number(const char* name, int64_t low, int64_t high) const { return to_number(find(name), name, low, high); }
  int integer(const char* name, int64_t low, int64_t high = kMaxInt) const { return int(number(name, low, high)); }

  double real(const char* name) const {
    const py::object value = find(name);
    if (!PyFloat_Check(value.ptr()))
      throw py::type_error(std::string(name) + " must be a float; got " + type_name(value));
    return PyFloat_AS_DOUBLE(value.ptr());
  }

  // Any 64 bits.
  uint64_t word(const char* name) const {
    const py::object value = find(name);
    require_int(value, name);
    const uint64_t word = PyLong_AsUnsignedLongLong(value.ptr());
    if (PyErr_Occurred() == nullptr) return word;
    PyErr_Clear();
    throw py::value_error(std::string(name) + " must be in [0, 2**64); got " + std::string(py::repr(value)));
  }
  bool flag(const char* name) const {
    const py::object value = find(name);
    if (!PyBool_Check(value.ptr()))
      throw py::type_error(std::string(name) + " must be a bool; got " + type_name(value));
    return value.ptr() == Py_True;
  }
  std::string text(const char* name) const {
    const py::object value = find(name);
    if (!PyUnicode_Check(value.ptr()))
      throw py::type_error(std::string(name) + " must be a str; got " + type_name(value));
    return py::cast<std::string>(value);
  }
  template <class Enum>
  Enum choice(const char* name, const std::map<std::string, Enum>& values) const {
    const std::string value = text(name);
    const auto found = values.find(value);
    if (found == values.end()) throw py::value_error(std::string(name) + " has no value '" + value + "'");
    return found->second;
  }
  template <class T>
  void triple(const char* name, int64_t low, int64_t high, T* to) const {
    const py::object value = find(name);
    if (!PyList_Check(value.ptr()) && !PyTuple_Check(value.ptr()))
      throw py::type_error(std::string(name) + " must be a list or a tuple; got " + type_name(value));
    const py::sequence items = py::reinterpret_borrow<py::sequence>(value);
    if (items.size() != 3) throw py::value_error(std::string(name) + " must have 3 entries");
    for (int i = 0; i < 3; ++i) to[i] = T(to_number(items[i], name, low, high));
  }

 private:
  py::object find(const char* name) const {
    if (!values_.contains(name)) throw py::key_error(std::string("options lacks ") + name);
    return values_[name];
  }
  static void require_int(py::handle value, const char* name) {
    if (!PyLong_Check(value.ptr()) || PyBool_Check(value.ptr()))
      throw py::type_error(std::string(name) + " must be an int; got " + type_name(value));
  }
  static int64_t to_number(const py::object& value, const char* name, int64_t low, int64_t high) {
    require_int(value, name);
    int overflow = 0;
    const int64_t number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow == 0 && low <= number && number <= high) return number;
    throw py::value_error(std::string(name) + " must be in [" + std::to_string(low) + ", " + std::to_string(high) +
                          "]; got " + std::string(py::repr(value)));
  }

  const py::dict& values_;
};

// Keeps what it has read alive: while the lock is released, others may empty the dict.
class Arrays {
 public:
  explicit Arrays(const py::dict& values) : values_(values) {}

  bool has(const char* name) const { return values_.contains(name) && !values_[name].is_none(); }

  const void* stored(const char* name, int64_t count, Storage storage) { return find(name, count, storage, false); }
  void* stored_out(const char* name, int64_t count, Storage storage) { return find(name, count, storage, true); }
  const float* floats(const char* name, int64_t count) { return (float*)find(name, count, Storage::kFloat32, false); }
  float* floats_out(const char* name, int64_t count) { return (float*)find(name, count, Storage::kFloat32, true); }
  double* doubles(const char* name, int64_t count, bool is_written) {
    return (double*)check(name, count, 8, "f", is_written);
  }

  // An array that no name has asked for would be ignored without a word.
  void require_all_used() const {
    size_t given = 0;
    for (const auto& item : values_) given += !item.second.is_none();
    if (given == used_.size()) return;
    for (const auto& item : values_) {
      const std::string name = py::str(item.first);
      bool is_known = item.second.is_none();
      for (const auto& used : used_) is_known |= name == used.first;
      if (!is_known) throw py::value_error(name + " must not be given in this call");
    }
  }

 private:
  // 16-bit floats come as anything of 16 bits, since numpy has no bfloat16.
  void* find(const char* name, int64_t count, Storage storage, bool is_written) {
    return storage == Storage::kFloat32 ? check(name, count, 4, "f", is_written)
                                        : check(name, count, 2, "fiuV", is_written);
  }

  void* check(const char* name, int64_t count, int64_t item, const char* kinds, bool is_written) {
    if (!has(name)) throw py::value_error(std::string(name) + " must be given");
    const py::object value = values_[name];
    if (!py::isinstance<py::array>(value))
      throw py::type_error(std::string(name) + " must be a numpy array; got " + type_name(value));
    const py::array array = py::reinterpret_borrow<py::array>(value);
    const py::dtype dtype = array.dtype();
    const bool is_native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
    if (dtype.itemsize() != item || !is_native || std::string(kinds).find(dtype.kind()) == std::string::npos)
      throw py::type_error(std::string(name) + " must have items of " + std::to_string(item) + " bytes, native " +
                           (item == 2 ? "16-bit values" : "floats") + "; got " + std::string(py::str(dtype)));
    const int needed = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & needed) != needed)
      throw py::value_error(std::string(name) + " must be contiguous and aligned");
    if (is_written && !array.writeable()) throw py::value_error(std::string(name) + " must be writeable");
    if (array.size() != count)
      throw py::value_error(std::string(name) + " must have " + std::to_string(count) + " values; got " +
                            std::to_string(array.size()));
    void* data = const_cast<void*>(array.data());
    if (data == nullptr && count > 0) throw py::value_error(std::string(name) + " has no memory");
    used_.emplace_back(name, array);
    return data;
  }

  const py::dict& values_;
  std::vector<std::pair<std::string, py::array>> used_;
};

}  // namespace ncakern
