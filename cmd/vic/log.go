package main

import (
	"io"
	"log/slog"
)

// newLog is the log of vic serve, one record a line.
func newLog(w io.Writer, level, format string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var l slog.Level
	switch level {
	case "debug", "info", "warn", "error":
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, err
		}
		o.Level = l
	default:
		return nil, usageErrorf("--log-level %s: use debug, info, warn or error", level)
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return nil, usageErrorf("--log-format %s: use text or json", format)
}
