package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/diff"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/kube"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/tracing"
	argodiff "github.com/argoproj/argo-cd/v3/util/argo/diff"
	"github.com/argoproj/argo-cd/v3/util/argo/normalizers"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2/textlogger"
)

const manager = "argocd-controller"

// difference is what Argo CD would show of one manifest that is out of sync.
type difference struct {
	Name      string          `json:"name"`
	Mode      string          `json:"mode"`
	Live      json.RawMessage `json:"live"`
	Predicted json.RawMessage `json:"predicted"`
}

// drift compares with each of Argo CD's three ways to compare: the default one, that of applications which apply on the
// server's side, and that of the compare option ServerSideDiff.
func drift(kubeconfig, configMap string) error {
	overrides, err := argoSettings(configMap)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	found, err := objects()
	if err != nil {
		return err
	}
	kubectl := kube.KubectlCmd{Log: textlogger.NewLogger(textlogger.NewConfig()), Tracer: tracing.NopTracer{}}
	_, parser, err := kubectl.LoadOpenAPISchema(config)
	if err != nil {
		return err
	}
	applier, done, err := kubectl.ManageServerSideDiffDryRuns(config)
	if err != nil {
		return err
	}
	defer done()
	differences := []difference{}
	for _, target := range found {
		live, err := kubectl.GetResource(context.Background(), config, target.GroupVersionKind(), target.GetName(), target.GetNamespace())
		if err != nil {
			return fmt.Errorf("%s: %w", target.GetName(), err)
		}
		for _, mode := range []string{"default", "ServerSideApply", "ServerSideDiff"} {
			how, err := argodiff.NewDiffConfigBuilder().
				WithDiffSettings(nil, overrides, false, normalizers.IgnoreNormalizerOpts{}).
				WithTracking("", "annotation").
				WithNoCache().
				WithGVKParser(parser).
				WithManager(manager).
				WithStructuredMergeDiff(mode == "ServerSideApply").
				WithServerSideDiff(mode == "ServerSideDiff").
				WithServerSideDryRunner(diff.NewK8sServerSideDryRunner(applier)).
				Build()
			if err != nil {
				return err
			}
			result, err := argodiff.StateDiff(live.DeepCopy(), target.DeepCopy(), how)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", target.GetName(), mode, err)
			}
			if result.Modified {
				differences = append(differences, difference{target.GetName(), mode, result.NormalizedLive, result.PredictedLive})
			}
		}
	}
	return answer(differences)
}
