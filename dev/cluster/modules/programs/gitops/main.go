// Gitops asks the GitOps engines, by their own code, what they make of our objects and samples. tests/platform drives it.
//
//	gitops health ARGOCD_CM FLUX_KUSTOMIZATION  the health of the objects on the standard input, one JSON document each
//	gitops drift KUBECONFIG ARGOCD_CM           what Argo CD would call out of sync of the manifests on the standard input
//	gitops check FILE...                        whether Argo CD's and Flux's own types know every field of the samples
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 3 && arguments[0] == "health":
		return health(arguments[1], arguments[2])
	case len(arguments) == 3 && arguments[0] == "drift":
		return drift(arguments[1], arguments[2])
	case len(arguments) > 1 && arguments[0] == "check":
		return check(arguments[1:])
	}
	return errors.New("usage: gitops health ARGOCD_CM FLUX_KUSTOMIZATION | drift KUBECONFIG ARGOCD_CM | check FILE...")
}

// objects reads the standard input. Unstructured's own decoder keeps integers, without which kstatus and Flux skip the
// comparison of generations.
func objects() ([]*unstructured.Unstructured, error) {
	found := []*unstructured.Unstructured{}
	decoder := json.NewDecoder(os.Stdin)
	for {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, fmt.Errorf("document %d of the standard input: %w", len(found)+1, err)
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil {
			return nil, fmt.Errorf("document %d of the standard input: %w", len(found)+1, err)
		}
		found = append(found, object)
	}
}

func answer(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
