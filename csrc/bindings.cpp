// The only pybind11 file: checks arrays at the border, releases the GIL, hands results over without a copy.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __linux__
#include <sched.h>
#endif

#include <cstdlib>
#include <limits>
#include <thread>

#include "stages.h"
#ifdef REID_WITH_CUDA
#include "cuda/device_stages.h"
#endif

namespace py = pybind11;

namespace reid_fast {
namespace {

template <class T>
using CArray = py::array_t<T, py::array::c_style>;

// Those that this process may use: a job may have 8 of 128.
int processors() {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int threads_to_use() {
  constexpr long kMost = 1024;
  const char* asked = std::getenv("OMP_NUM_THREADS");
  const long count = asked ? std::strtol(asked, nullptr, 10) : 0;
  return count > 0 ? static_cast<int>(std::min(count, kMost)) : processors();
}

// Called with (parts done, parts in all) by whichever thread runs a stage; never freed, for Python ends before it.
py::object& watcher() {
  static auto* const held = new py::object(py::none());
  return *held;
}

// Ctrl-C ends the stage: Python's handler raises, and the error surfaces once the threads have stopped. So does what
// the watcher raises.
Run run_of_caller() {
  return {threads_to_use(), [](int64_t done, int64_t total) {
            py::gil_scoped_acquire gil;
            try {
              if (!watcher().is_none()) watcher()(done, total);
            } catch (py::error_already_set& error) {
              error.restore();
              return true;
            }
            return PyErr_CheckSignals() != 0;
          }};
}

// Runs a stage without the GIL; the exception of an interrupted one is Python's own.
template <class Stage>
auto without_gil(Stage stage) {
  try {
    py::gil_scoped_release released;
    return stage(run_of_caller());
  } catch (const Interrupted&) {
    throw py::error_already_set();
  }
}

template <class T>
py::array_t<T> to_numpy(Array<T> array, std::vector<py::ssize_t> shape) {
  T* data = array.data.release();
  py::capsule owner(data, [](void* memory) { std::free(memory); });
  return py::array_t<T>(std::move(shape), data, owner);
}

py::tuple to_csr(Csr rows) {
  const py::ssize_t n = rows.start.size - 1, entries = rows.index.size;
  return py::make_tuple(to_numpy(std::move(rows.start), {n + 1}), to_numpy(std::move(rows.index), {entries}),
                        to_numpy(std::move(rows.value), {entries}));
}

void require(bool holds, const std::string& text) {
  if (!holds) throw py::value_error(text);
}

// pybind11 looks at the layout of an array, not at where it begins.
template <class T>
const T* elements(const CArray<T>& array) {
  require(reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0, "arrays must be aligned");
  return array.data();
}

Features features_of(const CArray<float>& rows) {
  require(rows.ndim() == 2 && rows.size() > 0, "features must be [N, D] with N and D at least 1");
  require(rows.shape(0) < INT32_MAX, "features: more rows than an int32 index can name");
  return {elements(rows), rows.shape(0), rows.shape(1)};
}

// The searches sort rows by their products, which NaN would have no place among.
Features finite_features_of(const CArray<float>& rows) {
  const Features features = features_of(rows);
  const std::string fault = without_gil([&](const Run& run) { return fault_of(features, run); });
  require(fault.empty(), "features: " + fault);
  return features;
}

Features unit_features_of(const CArray<float>& rows) {
  const Features features = features_of(rows);
  const std::string fault = without_gil([&](const Run& run) { return fault_of_length(features, run); });
  require(fault.empty(), "features: " + fault);
  return features;
}

Ranking ranking_of(const CArray<int32_t>& index, const CArray<float>& similarity, int64_t n) {
  require(index.ndim() == 2 && index.shape(0) == n && index.shape(1) > 0 && index.shape(1) <= n,
          "neighbours: index must be [N, K] with K in 1..N");
  require(similarity.ndim() == 2 && similarity.shape(0) == n && similarity.shape(1) == index.shape(1),
          "neighbours: similarity must have the shape of index");
  return {elements(index), elements(similarity), n, static_cast<int>(index.shape(1))};
}

py::tuple py_knn(const CArray<float>& rows, int k, int64_t begin, int64_t end, const std::string& kernel) {
  const Features features = finite_features_of(rows);
  require(1 <= k && k <= features.n, "k must lie in 1..N");
  require(0 <= begin && begin <= end && end <= features.n, "rows [begin, end) must lie in 0..N");
  Neighbours found = without_gil([&](const Run& run) { return knn(features, k, begin, end, kernel, run); });
  return py::make_tuple(to_numpy(std::move(found.index), {end - begin, k}),
                        to_numpy(std::move(found.similarity), {end - begin, k}));
}

bool ascends(const CArray<int64_t>& start, int64_t entries) {
  const int64_t* last = elements(start) + start.size() - 1;
  return *elements(start) == 0 && *last == entries && std::is_sorted(elements(start), last + 1);
}

// `Lists` as its own comments have it.
Lists lists_of(int64_t n, int k, const CArray<int32_t>& members, const CArray<int64_t>& start,
               const CArray<int64_t>& near_start, const CArray<int32_t>& near) {
  const int64_t count = start.size() - 1;
  require(members.ndim() == 1 && start.ndim() == 1 && near_start.ndim() == 1 && near.ndim() == 1 &&
              members.size() == n && count > 0 && near_start.size() == start.size() && ascends(start, n) &&
              ascends(near_start, near.size()),
          "lists: members must be [N], start and near_start [lists + 1] and ascend from 0 to the lengths of members "
          "and near");
  std::vector<bool> seen(n);
  for (int64_t t = 0; t < n; ++t) {
    const int32_t row = elements(members)[t];
    require(0 <= row && row < n && !seen[row], "lists: members must name each row once, here " + std::to_string(row));
    seen[row] = true;
  }
  const auto near_of = [&](int64_t list) {
    return std::pair(elements(near) + elements(near_start)[list], elements(near) + elements(near_start)[list + 1]);
  };
  for (int64_t e = 0; e < near.size(); ++e) {
    require(0 <= elements(near)[e] && elements(near)[e] < count, "lists: near names a list that does not exist");
  }
  for (int64_t list = 0; list < count; ++list) {
    const auto [first, last] = near_of(list);
    int64_t rows = 0;
    bool sound = std::is_sorted(first, last) && std::adjacent_find(first, last) == last;
    sound &= std::binary_search(first, last, list);
    for (const int32_t* other = first; other < last; ++other) {
      const auto [from, to] = near_of(*other);
      sound &= std::binary_search(from, to, list);
      rows += elements(start)[*other + 1] - elements(start)[*other];
    }
    require(sound, "lists: near must ascend, with the list itself among them and with each other list that has it");
    require(rows >= k, "lists: those near list " + std::to_string(list) + " have less than k rows");
  }
  return {elements(members), elements(start), elements(near_start), elements(near), count};
}

py::tuple py_knn_in_lists(const CArray<float>& rows, int k, const CArray<int32_t>& members,
                          const CArray<int64_t>& start, const CArray<int64_t>& near_start,
                          const CArray<int32_t>& near) {
  const Features features = finite_features_of(rows);
  require(2 <= k && k <= features.n, "k must lie in 2..N");
  const Lists lists = lists_of(features.n, k, members, start, near_start, near);
  Neighbours found = without_gil([&](const Run& run) {
    const Neighbours nearest = knn_in_lists(features, k, lists, "auto", run);
    const Ranking ranking{nearest.index.begin(), nearest.similarity.begin(), features.n, k};
    return neighbours_of_neighbours(features, ranking, elements(members), run);
  });
  return py::make_tuple(to_numpy(std::move(found.index), {features.n, k}),
                        to_numpy(std::move(found.similarity), {features.n, k}));
}

py::tuple py_knn_and_farthest(const CArray<float>& rows, int k, int64_t begin, int64_t end, const std::string& kernel) {
  const Features features = finite_features_of(rows);
  require((k >= 2 || features.n == 1) && 1 <= k && k <= features.n, "k must lie in 2..N, or be 1 of 1 row");
  require(0 <= begin && begin <= end && end <= features.n, "rows [begin, end) must lie in 0..N");
  auto found = without_gil([&](const Run& run) { return knn_and_farthest(features, k, begin, end, kernel, run); });
  return py::make_tuple(to_numpy(std::move(found.first.index), {end - begin, k}),
                        to_numpy(std::move(found.first.similarity), {end - begin, k}),
                        to_numpy(std::move(found.second), {end - begin}));
}

void require_sound(const Ranking& ranking) {
  const std::string fault = without_gil([&](const Run& run) { return fault_of(ranking, run); });
  require(fault.empty(), "neighbours: " + fault);
}

void py_check_neighbours(const CArray<int32_t>& index, const CArray<float>& similarity) {
  require(index.ndim() == 2, "neighbours: index must be [N, K] with K in 1..N");
  require_sound(ranking_of(index, similarity, index.shape(0)));
}

py::tuple py_jaccard_graph(const CArray<float>& rows, const CArray<int32_t>& index, const CArray<float>& similarity,
                           int k2, float max_distance, int64_t most) {
  const Features features = unit_features_of(rows);
  const Ranking ranking = ranking_of(index, similarity, features.n);
  require(1 <= k2 && k2 <= ranking.k, "k2 must lie in 1..K");
  require(0 <= max_distance && max_distance < 1, "max_distance must lie in [0, 1)");
  require_sound(ranking);
  Csr graph =
      without_gil([&](const Run& run) { return jaccard_graph(features, ranking, k2, max_distance, run, most); });
  return to_csr(std::move(graph));
}

py::tuple py_reranking_weights(const CArray<float>& rows, const CArray<int32_t>& index, const CArray<float>& similarity,
                               const CArray<float>& smallest, int half, int k2) {
  const Features features = unit_features_of(rows);
  const Ranking ranking = ranking_of(index, similarity, features.n);
  require(1 <= half && half <= ranking.k && 1 <= k2 && k2 <= ranking.k, "half and k2 must lie in 1..K");
  require(smallest.ndim() == 1 && smallest.size() == features.n, "smallest must be [N]");
  require_sound(ranking);
  return to_csr(without_gil(
      [&](const Run& run) { return reranking_weights(features, ranking, half, k2, elements(smallest), run); }));
}

// A matrix by rows, or by columns, whose indices lie in [0, width).
SparseView view_of(const CArray<int64_t>& start, const CArray<int32_t>& index, const CArray<float>& value,
                   int64_t width) {
  require(
      start.ndim() == 1 && start.size() > 0 && index.ndim() == 1 && value.ndim() == 1 && index.size() == value.size(),
      "weights: start must be [rows + 1], index and value of one length");
  const int64_t n = start.size() - 1;
  bool sound = elements(start)[0] == 0 && elements(start)[n] == index.size();
  for (int64_t i = 0; i < n; ++i) sound &= elements(start)[i] <= elements(start)[i + 1];
  for (int64_t e = 0; e < index.size(); ++e) {
    sound &= elements(index)[e] >= 0 && elements(index)[e] < width;
    // `Sums` knows by the zero in a place that nothing was added to it.
    sound &= elements(value)[e] > 0 && elements(value)[e] <= std::numeric_limits<float>::max();
  }
  require(sound,
          "weights: start must ascend from 0 to the number of entries, each index lie within its bounds, and each "
          "value be positive");
  return {elements(start), elements(index), elements(value)};
}

py::array_t<float> py_jaccard_rows(const CArray<int64_t>& start, const CArray<int32_t>& index,
                                   const CArray<float>& value, const CArray<int64_t>& column_start,
                                   const CArray<int32_t>& column_index, const CArray<float>& column_value,
                                   int64_t begin, int64_t end, int64_t width) {
  require(0 <= begin && begin <= end && end < start.size(), "rows [begin, end) must lie in 0..rows");
  require(0 <= width && width <= INT32_MAX, "width: more rows than an int32 index can name");
  const SparseView rows = view_of(start, index, value, column_start.size() - 1);
  const SparseView columns = view_of(column_start, column_index, column_value, width);
  Array<float> distance((end - begin) * width);
  without_gil([&](const Run& run) { jaccard_rows(rows, columns, begin, end, width, distance.begin(), run); });
  return to_numpy(std::move(distance), {end - begin, width});
}

template <class Offset, class Index, class Value>
py::array_t<int64_t> py_dbscan(const CArray<Offset>& start, const CArray<Index>& index, const CArray<Value>& value,
                               double eps, int64_t min_samples) {
  const int64_t n = start.size() - 1;
  require(start.ndim() == 1 && n >= 0, "graph: indptr must be [N + 1]");
  require(index.ndim() == 1 && value.ndim() == 1 && index.size() == value.size(),
          "graph: indices and data must be of one length");
  const Offset* offset = elements(start);
  bool sound = offset[0] == 0 && static_cast<int64_t>(offset[n]) == static_cast<int64_t>(index.size());
  for (int64_t i = 0; i < n; ++i) sound &= offset[i] <= offset[i + 1];
  require(sound, "graph: indptr must ascend from 0 to the number of entries");
  for (int64_t e = 0; e < index.size(); ++e) sound &= elements(index)[e] >= 0 && elements(index)[e] < n;
  require(sound, "graph: an index names a row that does not exist");
  Array<int64_t> labels(n);
  const Graph<Offset, Index, Value> graph{offset, elements(index), elements(value), n};
  without_gil([&](const Run& run) { dbscan(graph, static_cast<Value>(eps), min_samples, labels.begin(), run); });
  return to_numpy(std::move(labels), {n});
}

template <class Offset, class Index, class Value>
void bind_dbscan(py::module_& module) {
  module.def("dbscan", &py_dbscan<Offset, Index, Value>, py::arg("indptr").noconvert(), py::arg("indices").noconvert(),
             py::arg("data").noconvert(), py::arg("eps"), py::arg("min_samples"));
}

#ifdef REID_WITH_CUDA
// Device pointers and streams cross the border as integers.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Memory is what `allocate(bytes)` returns, a tensor, and lives as long as that does. Stages run without the GIL.
cuda::Context context_of(uintptr_t stream, const py::function& allocate, int64_t scratch_bytes) {
  auto allocated = [&allocate](int64_t bytes) {
    const auto drop = [](py::object* tensor) {
      py::gil_scoped_acquire gil;
      delete tensor;
    };
    py::gil_scoped_acquire gil;
    const std::shared_ptr<py::object> tensor(new py::object(allocate(bytes)), drop);
    return cuda::Memory{pointer<void>(tensor->attr("data_ptr")().cast<uintptr_t>()), tensor};
  };
  return {pointer<void>(stream), allocated, scratch_bytes};
}

py::object tensor_of(const cuda::Memory& memory) { return *static_cast<py::object*>(memory.owner.get()); }

py::tuple py_jaccard_graph_cuda(uintptr_t rows, int64_t n, int64_t width, uintptr_t index, uintptr_t similarity, int k,
                                int k2, float max_distance, uintptr_t stream, const py::function& allocate,
                                int64_t scratch_bytes) {
  require(1 <= k2 && k2 <= k && k <= n, "k2 must lie in 1..K, K in 1..N");
  require(0 <= max_distance && max_distance < 1, "max_distance must lie in [0, 1)");
  const Features features{pointer<float>(rows), n, width};
  const Ranking ranking{pointer<int32_t>(index), pointer<float>(similarity), n, k};
  const cuda::DeviceGraph graph = [&] {
    py::gil_scoped_release released;
    return cuda::jaccard_graph(features, ranking, k2, max_distance, context_of(stream, allocate, scratch_bytes));
  }();
  return py::make_tuple(tensor_of(graph.start), tensor_of(graph.index), tensor_of(graph.value));
}

void py_dbscan_cuda(uintptr_t start, uintptr_t index, uintptr_t value, int64_t n, float eps, int64_t min_samples,
                    uintptr_t labels, uintptr_t stream, const py::function& allocate) {
  py::gil_scoped_release released;
  cuda::dbscan({pointer<int64_t>(start), pointer<int32_t>(index), pointer<float>(value), n}, eps, min_samples,
               pointer<int64_t>(labels), context_of(stream, allocate, 0));
}

void bind_cuda(py::module_& module) {
  module.def("jaccard_graph_cuda", &py_jaccard_graph_cuda, py::arg("rows"), py::arg("n"), py::arg("width"),
             py::arg("index"), py::arg("similarity"), py::arg("k"), py::arg("k2"), py::arg("max_distance"),
             py::arg("stream"), py::arg("allocate"), py::arg("scratch_bytes"));
  module.def("dbscan_cuda", &py_dbscan_cuda, py::arg("start"), py::arg("index"), py::arg("value"), py::arg("n"),
             py::arg("eps"), py::arg("min_samples"), py::arg("labels"), py::arg("stream"), py::arg("allocate"));
}
#endif

}  // namespace
}  // namespace reid_fast

PYBIND11_MODULE(_C, module) {
  using namespace reid_fast;
  module.doc() = "Compiled clustering stages; called through reid_fast.clustering.";
#ifdef REID_WITH_CUDA
  module.attr("cuda") = true;
  bind_cuda(module);
#else
  module.attr("cuda") = false;
#endif
  module.def(
      "watch", [](py::object told) { watcher() = std::move(told); },
      "Have a function told of every stage, a few times a second on its caller's thread: (parts done, parts in all).");
  module.def("similarity_kernels", &similarity_kernels, "Kernels of `knn` this processor can run, fastest first.");
  module.def("knn", &py_knn, py::arg("rows").noconvert(), py::arg("k"), py::arg("begin"), py::arg("end"),
             py::arg("kernel") = "auto");
  module.def("knn_in_lists", &py_knn_in_lists, py::arg("rows").noconvert(), py::arg("k"),
             py::arg("members").noconvert(), py::arg("start").noconvert(), py::arg("near_start").noconvert(),
             py::arg("near").noconvert());
  module.def("knn_and_farthest", &py_knn_and_farthest, py::arg("rows").noconvert(), py::arg("k"), py::arg("begin"),
             py::arg("end"), py::arg("kernel") = "auto");
  module.def("reranking_weights", &py_reranking_weights, py::arg("rows").noconvert(), py::arg("index").noconvert(),
             py::arg("similarity").noconvert(), py::arg("smallest").noconvert(), py::arg("half"), py::arg("k2"));
  module.def("jaccard_rows", &py_jaccard_rows, py::arg("start").noconvert(), py::arg("index").noconvert(),
             py::arg("value").noconvert(), py::arg("column_start").noconvert(), py::arg("column_index").noconvert(),
             py::arg("column_value").noconvert(), py::arg("begin"), py::arg("end"), py::arg("width"));
  module.def("check_neighbours", &py_check_neighbours, py::arg("index").noconvert(), py::arg("similarity").noconvert());
  module.def("jaccard_graph", &py_jaccard_graph, py::arg("rows").noconvert(), py::arg("index").noconvert(),
             py::arg("similarity").noconvert(), py::arg("k2"), py::arg("max_distance"), py::arg("most"));
  // Local: a second copy of this module in the process must not answer with its own type.
  py::register_local_exception<TooLarge>(module, "TooLarge", PyExc_MemoryError);
  bind_dbscan<int32_t, int32_t, float>(module);
  bind_dbscan<int32_t, int32_t, double>(module);
  bind_dbscan<int64_t, int64_t, float>(module);
  bind_dbscan<int64_t, int64_t, double>(module);
}
