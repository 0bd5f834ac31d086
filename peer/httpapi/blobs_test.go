package httpapi

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// held is an entry of a tar that a receipt stands for.
func held(name, receipt string) entry {
	e := file(name, "")
	e.PAXRecords = map[string]string{ReceiptRecord: receipt}
	return e
}

func TestReceipts(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	data := pack(t, file("a", "AA"), held("b", " again"))
	r := m.do(t, "ann", "POST", "/v1/projects?receipts=true", bytes.NewReader(data), "Content-Type", tarType)
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	require.Contains(t, string(r.body), `"receipts":["for a","for b again"]`)
	r = m.upload(t, bytes.NewReader(data))
	require.NotContains(t, string(r.body), "receipts", "nobody asked")

	r = m.upload(t, bytes.NewReader(pack(t, held("files/b", "old"))))
	require.Equal(t, 409, r.StatusCode)
	p := r.problem(t)
	require.Equal(t, CodeLacking, p.Code)
	require.Equal(t, []string{"files/b"}, p.Lacks)

	both := held("b", "x")
	both.Size, both.data = 1, "b"
	r = m.upload(t, bytes.NewReader(pack(t, both)))
	require.Equal(t, 422, r.StatusCode)
	require.Contains(t, r.problem(t).Detail, "both bytes and a receipt")
}

func TestAddBlob(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	one := pack(t, file("a", "AA"))
	r := m.do(t, "ann", "POST", "/v1/blobs?file=true", bytes.NewReader(one), "Content-Type", tarType)
	require.Equal(t, 200, r.StatusCode, "%s", r.body)
	require.JSONEq(t, `{"cid":"`+someCID+`","files":1,"size":2,"new_bytes":0}`, string(r.body))
	r = m.do(t, "ann", "POST", "/v1/blobs?file=true", bytes.NewReader(pack(t, file("a", ""), file("b", ""))), "Content-Type", tarType)
	require.Equal(t, 422, r.StatusCode)
	r = m.do(t, "ann", "POST", "/v1/blobs", bytes.NewReader(pack(t, file("../a", ""))), "Content-Type", tarType)
	require.Equal(t, 422, r.StatusCode)
	require.Equal(t, 415, m.do(t, "ann", "POST", "/v1/blobs", strings.NewReader("x"), "Content-Type", "text/plain").StatusCode)
}

func TestReadBlobs(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	r := m.do(t, "ann", "GET", "/v1/blobs/"+someCID, nil, "Range", "bytes=4-9")
	require.Equal(t, 206, r.StatusCode)
	require.Equal(t, picture[4:10], string(r.body))

	m.set(func(m *machine) { m.folder = true })
	r = m.do(t, "ann", "GET", "/v1/blobs/"+someCID, nil)
	require.Equal(t, tarType, r.Header.Get("Content-Type"))
	tr := tar.NewReader(bytes.NewReader(r.body))
	h, err := tr.Next()
	require.NoError(t, err)
	require.Equal(t, "a/b.png", h.Name)
	data, err := io.ReadAll(tr)
	require.NoError(t, err)
	require.Equal(t, picture, string(data))

	// What breaks in mid-stream must not look like the end.
	m.set(func(m *machine) { m.storeErr = errors.New("the disk is broken") })
	for _, path := range []string{"/v1/blobs/" + someCID, "/v1/blobs"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", m.url+path, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer ann")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		require.Error(t, err, path)
	}

	// Another's content does not exist; a viewer changes nothing.
	for _, path := range []string{"GET /v1/blobs/" + someCID, "POST /v1/blobs/" + someCID + "/fetch", "POST /v1/blobs/" + someCID + "/pin"} {
		method, path, _ := strings.Cut(path, " ")
		require.Equal(t, 404, m.do(t, "bob", method, path, nil).StatusCode, path)
	}
	require.Empty(t, m.do(t, "bob", "GET", "/v1/blobs", nil).body)
	require.Equal(t, 403, m.do(t, "ann", "POST", "/v1/blobs/"+someCID+"/unpin?user=bob", nil).StatusCode)
	require.Equal(t, 200, m.do(t, "root", "POST", "/v1/blobs/"+someCID+"/unpin?user=bob", nil).StatusCode)
	require.Equal(t, []string{"bob"}, m.unpinned)
}

func TestSteps(t *testing.T) {
	_, ms := newFarm(t, 1, Config{})
	m := ms[0]
	last := func(r reply) (s Step[Root]) {
		lines := bytes.Split(bytes.TrimSpace(r.body), []byte("\n"))
		require.NoError(t, json.Unmarshal(lines[len(lines)-1], &s))
		return s
	}
	r := m.do(t, "ann", "POST", "/v1/blobs/"+someCID+"/fetch", nil)
	require.Equal(t, linesType, r.Header.Get("Content-Type"))
	require.Equal(t, someCID, last(r).Result.CID)

	// An error after progress is the last line, with the words of an answer.
	m.set(func(m *machine) { m.storeErr = fmt.Errorf("%w: nobody has it", ErrUnavailable) })
	r = m.do(t, "ann", "POST", "/v1/blobs/"+someCID+"/fetch", nil)
	if r.StatusCode == 200 { // else it failed before its progress was told
		require.Equal(t, CodeUnavailable, last(r).Problem.Code)
	} else {
		require.Equal(t, CodeUnavailable, r.problem(t).Code)
	}
}
