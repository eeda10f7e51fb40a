package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"vic/containervm"
	"vic/layerstore"
)

// metrics is what a Server counts, for Prometheus. Labels have few values, none of which a client makes up.
type metrics struct {
	active    prometheus.Gauge
	requests  *prometheus.CounterVec   // method, route, code
	durations *prometheus.HistogramVec // method, route
	starts    prometheus.Histogram
	failed    prometheus.Counter
	pulls     *prometheus.CounterVec // result
	layers    *prometheus.CounterVec // source
	bytes     prometheus.Counter
}

// newMetrics makes the metrics and registers them with r, if there is one.
func newMetrics(r prometheus.Registerer, containers *containervm.Manager) *metrics {
	m := &metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "vic_api_active_requests", Help: "Requests being answered, streams and waits among them."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vic_api_requests_total", Help: "Requests answered, by line of the route table and status."}, []string{"method", "route", "code"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vic_api_request_seconds", Help: "How long requests took. Streams and waits take as long as what they follow.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60}}, []string{"method", "route"}),
		starts: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vic_container_start_seconds", Help: "From a client's request to start a container until its process runs.",
			Buckets: []float64{.1, .25, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60}}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vic_container_start_failures_total", Help: "Requests to start a container that failed."}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vic_image_pulls_total", Help: "Pulls, by result: ok or error."}, []string{"result"}),
		layers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vic_image_layers_total", Help: "Layers of pulled images, by source: made by the pull, or store if they were there."}, []string{"source"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vic_image_bytes_total", Help: "Size of the blobs of the layers that pulls made."}),
	}
	if r != nil {
		r.MustRegister(m.active, m.requests, m.durations, m.starts, m.failed, m.pulls, m.layers, m.bytes, containerStates{containers})
	}
	return m
}

func (m *metrics) request(o *observed, took time.Duration) {
	m.requests.WithLabelValues(o.method, o.route, strconv.Itoa(o.status)).Inc()
	m.durations.WithLabelValues(o.method, o.route).Observe(took.Seconds())
}

// start starts a container by f, and measures it.
func (m *metrics) start(f func() error) error {
	begun := time.Now()
	err := f()
	switch {
	case err == nil:
		m.starts.Observe(time.Since(begun).Seconds())
	case statusOf(err) != http.StatusNotModified:
		m.failed.Inc()
	}
	return err
}

// pulled counts a pull that has ended.
func (m *metrics) pulled(err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.pulls.WithLabelValues(result).Inc()
}

// layer counts what a pull tells of a layer.
func (m *metrics) layer(e layerstore.ProgressEvent) {
	switch e.Stage {
	case layerstore.StageFetched:
		m.bytes.Add(float64(e.Total))
	case layerstore.StageDone:
		m.layers.WithLabelValues("pull").Inc()
	case layerstore.StageExists:
		m.layers.WithLabelValues("store").Inc()
	}
}

// containerStates counts containers by state when it is asked.
type containerStates struct{ containers *containervm.Manager }

var containersDesc = prometheus.NewDesc("vic_containers", "Containers, by state.", []string{"state"}, nil)

func (c containerStates) Describe(ch chan<- *prometheus.Desc) { ch <- containersDesc }

func (c containerStates) Collect(ch chan<- prometheus.Metric) {
	count := map[containervm.Status]int{containervm.Created: 0, containervm.Running: 0, containervm.Exited: 0}
	for _, ct := range c.containers.List() {
		count[ct.Info().State.Status]++
	}
	for status, n := range count {
		ch <- prometheus.MustNewConstMetric(containersDesc, prometheus.GaugeValue, float64(n), string(status))
	}
}
