package client

import (
	"log/slog"
	"time"
)

const levelRetry = slog.LevelInfo

func errAttr(err error) slog.Attr         { return slog.String("error", err.Error()) }
func durAttr(d time.Duration) slog.Attr   { return slog.Duration("wait", d) }
func strAttr(key, value string) slog.Attr { return slog.String(key, value) }
